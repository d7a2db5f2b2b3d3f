"""What the benchmarks measure foedus beside, and sites that cost little."""
