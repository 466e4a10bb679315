"""Text to Spec. `loading.load_experiment` and `loading.check_files` are the ways in.

Read in this order:

    source         a file's text, or why it cannot be had
    yaml_core      text to a tree of nodes with places (scalars, yaml_errors, nodes)
    composition    the file over the fragments it extends
    overrides      --set (paths)
    matrix         one document to its cells (cell_names)
    environment    {env: NAME, default: ...}, secrets
    file_paths     relative paths joined
    document       a resolved document with its places
    checking       what the schema says (schema/, suggestions)
    semantics      what a schema cannot say
    build          document to types.Spec (defaults)
    digest         what decides results, numerics, and neither
    problems       what is wrong and where; formats shows it
"""
