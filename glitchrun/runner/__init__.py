"""Plan + model + strategies + ledger + trackers: the only place where effects meet."""
