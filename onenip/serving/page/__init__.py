"""The web page of `onenip inspect`.

- `models`: the detectors to show
- `drawing`: the chart of scores
- `decision`: the form that approves or rejects a challenger
- `page`: the page itself, run by Streamlit
- `server`: the process that serves it, and to whom
"""
