"""Which samples come when: a pure function of seed, step and rank."""
