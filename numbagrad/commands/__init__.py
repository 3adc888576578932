"""What the commands of ``numbagrad/cli.py`` do, one responsibility for each file.

================  ==================================================================
``config.py``     a training as a TOML file: net, data, solver
``runs.py``       a run's folder: training into it, going on, opening it again
``prediction.py`` what is on a picture
``pictures.py``   arrays as image files
``report.py``     a run as one HTML page (``report.html`` is its frame)
``demo.py``       the demonstration
``doctor.py``     what there is on this machine
================  ==================================================================
"""
