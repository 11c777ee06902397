"""What the experiments answered: verdicts, figures and the findings page, made from Parquet."""
