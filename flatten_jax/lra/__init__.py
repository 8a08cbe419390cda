"""Long Range Arena (Tay et al., ICLR 2021, arXiv 2011.04006): its pixels and its nested lists."""
