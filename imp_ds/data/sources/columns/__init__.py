"""What the columns of rows hold: captions, labels and names of classes, media as bytes."""
