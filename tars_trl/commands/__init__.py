"""What each command does, as `main`: of `tars-trl NAME` and `recipes/NAME.py`; with several processes, of
`accelerate launch -m tars_trl.commands.NAME`.
"""
