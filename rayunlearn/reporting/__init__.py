"""Tables, sentences, plots and pages of a run, without computing a statistic; may import analysis
and storage.
"""
