"""A demo of a model in a browser: plain functions from images to pictures, and a layout in Gradio."""
