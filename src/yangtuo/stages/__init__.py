"""One module a verb: `run(config)` reads artifacts and writes one. Stages never import each other."""
