"""The computations of the pipeline: tables in and out. Change here to: nothing; each module is a stage, or a noun."""
