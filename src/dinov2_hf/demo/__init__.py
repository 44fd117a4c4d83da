"""What a model sees, to be tried in a browser: plain functions from images to pictures, and a layout of Gradio."""
