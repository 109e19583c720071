"""The page at `/`: a chat in the browser, from plain files without a build step.

`index.html` loads `app.js` and `style.css`; `routes.py` serves the files of this folder.
"""
