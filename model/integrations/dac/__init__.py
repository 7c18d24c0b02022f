"""The Descript audio codec of transformers and of dac."""
