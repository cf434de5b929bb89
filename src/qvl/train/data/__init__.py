"""Files of conversations as samples: checked whole before training, boxes and sizes fitted to the model."""
