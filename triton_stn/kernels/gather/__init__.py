"""Backward by gathering, zeros padding: a program owns tiles of *input* pixels.

Input pixel (u, v) receives from the output pixels p with x(p) in [u-1, u+1), y(p) in [v-1, v+1):

    dX[n, c, v, u] = sum over k, p of dY[n, k, c, p] · wx(p) · wy(p)        wx = 1 - |x(p) - u|

The preimage of the 2 x 2 cell is a parallelogram whose bounding box, the window, has the same size
for every pixel of a theta. Of a theta without rotation the window gives the gradient S of the pixel
map too, of any other `output_side.py` does:

    t(p)           = sum over c of dY[n, k, c, p] · X[n, c, v, u]
    S_x           += t(p) · sgn_x · wy(p) · (j', i', 1)    sgn_x = +1 left of the pixel, else -1
    S_y           += t(p) · sgn_y · wx(p) · (j', i', 1)

Membership is decided on x(p), y(p) as the forward kernel rounds them, so every tap is counted
exactly once.

    one.py          one theta an image: window -> tiles -> passes of channels
    several.py      several: tiles -> passes -> maps; no grad_theta
    inverse.py      the inverse of an affine map, the kind of its window, tiles out of view
    candidates.py   what one output pixel gives to one input pixel
    axis.py, three.py, eight.py, straight.py, walk.py, wide.py, perspective.py, volume.py
                    a window each; windows.py dispatches to them
    rest.py         what a gather leaves to the scatter
"""
