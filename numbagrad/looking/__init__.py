"""What `numbagrad.inspect` is made of, one responsibility for each file.

================  ===========================================================
``insight.py``    inside a trained network: filters, feature maps, saliency
``explain.py``    an op from its formula to the machine code of its hot loop
``listings.py``   the hot loop in a listing of LLVM or assembly
``modules.py``    a network as a graph that opens module by module
================  ===========================================================
"""
