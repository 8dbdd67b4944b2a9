#!/bin/sh
# The first process of a kernel that kernels.py only tries. Never run by hand.
echo "LAB-TRIED $(uname -r)"
exec sleep 60
