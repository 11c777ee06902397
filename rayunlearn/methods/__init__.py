"""Unlearning methods: a forget loss and a retain loss, chosen apart and added with a weight."""
