"""From YAML text to a `Spec`. Start at `experiment_loading.load_experiment`
and `experiment_loading.check_files`.

The modules in the order in which a file passes through them:

    spec_files          find spec files, read their text
    yaml_parser         text to a tree of `nodes` with places (`yaml_scalars`: the values)
    composition         the file merged over the fragments that it extends
    overrides           --set PATH=VALUE
    matrix              one document to one for each cell
    resolution          environment variables, secrets, nulls, relative paths
    schema_errors       check against the JSON Schema (`schema`)
    semantics           checks that a schema cannot express (`mlflow_rules`: tags and stores)
    experiment_loading  all of these in order, and the document as a `types.Spec`

Beside them: `problems` (every error code) and `problem_formats`; `digest`, which decides what makes
two runs the same; the tables `searches`, `probes` and `templates`.
"""
