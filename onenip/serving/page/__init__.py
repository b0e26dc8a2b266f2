"""The page that people look at: `onenip inspect`.

- `models`: which detectors there are to look with
- `drawing`: pictures for the page
- `page`: the page itself, run by Streamlit
"""
