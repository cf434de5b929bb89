"""A new task for the bundled model, learned with LoRA: which way does the arrow point?"""
