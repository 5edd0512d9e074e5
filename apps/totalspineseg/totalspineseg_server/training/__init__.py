"""Train on corrections: from their collection to a gate that decides whether the new model may be put into use."""
