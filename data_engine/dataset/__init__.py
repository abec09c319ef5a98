"""The output: tables of images and masks, the commit records that make them visible, readers, audit and exports."""
