from .api import row_hash as row_hash
