"""The data factory: a crawl dump becomes clean, accounted token packs (see README.md in this folder)."""
