"""θ built, composed and inverted; pixel matrices; labels that follow θ; flows; other libraries' θ.

θ maps normalised output coordinates to normalised input coordinates, (x, y) order. Pixel
coordinates count pixel centres from 0 at the top left, as OpenCV and kornia do, so an image of
width W reaches from -0.5 to W - 0.5. Leading dimensions are free and broadcast; results are
float64 where an argument is, and float32 otherwise.
"""

from triton_stn.geometry.conventions import (
    from_monai,
    from_torchvision_affine,
    from_torchvision_perspective,
    normalize_points,
)
from triton_stn.geometry.flows import compose_flows, flow_inside_mask, jacobian_determinant
from triton_stn.geometry.labels import (
    MappedBoxes,
    from_boxes,
    from_rotated_boxes,
    map_boxes,
    map_points,
)
from triton_stn.geometry.matrices import (
    affine,
    compose,
    from_pixel_matrix,
    homography,
    inside_mask,
    invert,
    quadrilateral,
    to_pixel_matrix,
    valid_fraction,
)

__all__ = [
    "MappedBoxes",
    "affine",
    "compose",
    "compose_flows",
    "flow_inside_mask",
    "from_boxes",
    "from_monai",
    "from_pixel_matrix",
    "from_rotated_boxes",
    "from_torchvision_affine",
    "from_torchvision_perspective",
    "homography",
    "inside_mask",
    "invert",
    "jacobian_determinant",
    "map_boxes",
    "map_points",
    "normalize_points",
    "quadrilateral",
    "to_pixel_matrix",
    "valid_fraction",
]
