"""The nightly pipeline on Spark, one file per step."""
