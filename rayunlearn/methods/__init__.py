"""Unlearning methods: a forget loss and a retain loss, chosen separately and added with a weight;
may import data, models and train.
"""
