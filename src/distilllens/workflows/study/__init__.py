"""``distilllens study``: methods x training seeds on equal terms, and whether one helps."""
