"""The web pages of `onenip inspect`: a line's people look, review and decide.

- `app`: navigation, run by Streamlit from top to bottom at every change
- `overview`, `review`, `inspect`, `decide`, `data`, `operator`: a page each
- `common`: what several pages draw
- `models`: the detectors to show
- `viewer`: pictures side by side that zoom together, with boxes
- `charts`: scores and operating points
- `server`: the process that serves them, and to whom
"""
