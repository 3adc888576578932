"""What `numbagrad.train.fit` is made of, one responsibility for each file.

=================  ==========================================================
``step.py``        one training step: gradients, their clipping, the NaN guard
``evaluation.py``  the meter, and a model's loss and metrics on a data set
``metrics.py``     top-k accuracy, confusion matrix, F1
``losses.py``      class weights
``history.py``     what was measured, epoch by epoch
``progress.py``    bars and lines
``callbacks.py``   what is done beside training: early stopping, logs
``live.py``        learning curves that move, in a notebook
``monitors.py``    gradient norms and dead units, epoch by epoch
``checkpoint.py``  the files that a training goes on from
``events.py``      the files that TensorBoard reads
``finder.py``      the search for a learning rate
``run.py``         one training, from the first step to the last
=================  ==========================================================
"""
