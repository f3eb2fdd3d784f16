"""Networks, the authors' weights and their key schemes, doors of libraries."""
