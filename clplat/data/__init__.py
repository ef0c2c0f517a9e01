"""Data that people bring along: files and folders of tables, arrays, images and texts, read and made into streams."""
