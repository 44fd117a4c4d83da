"""The data (paper section 3): dataset in, dataset out, and a reason kept for every image dropped."""
