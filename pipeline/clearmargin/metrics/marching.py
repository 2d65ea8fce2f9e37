"""How much surface a 2 x 2 (x 2) neighbourhood of pixels holds: marching squares and marching cubes.

A neighbourhood is coded by its members: the corner at offset ``(z, y, x)`` has bit ``7 - (4z + 2y + x)``, in
the plane the corner at ``(y, x)`` bit ``3 - (2y + x)``. The surface cuts each edge between a member and a
non-member at its middle.

Source: Lorensen and Cline, "Marching cubes", SIGGRAPH 1987. The cases that paper leaves open (faces with two
diagonal members, how a polygon that is not plane is cut in triangles) follow DeepMind's surface-distance, so
that areas agree with that tool for any spacing.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["element_areas", "element_lengths", "triangles"]

# The middles of a cube's edges, as (z, y, x) in half steps, by the letter that stands for them below.
_MIDDLES = {
    "a": (0, 0, 1), "b": (0, 1, 0), "c": (0, 1, 2), "d": (0, 2, 1), "e": (1, 0, 0), "f": (1, 0, 2),
    "g": (1, 2, 0), "h": (1, 2, 2), "i": (2, 0, 1), "j": (2, 1, 0), "k": (2, 1, 2), "l": (2, 2, 1),
}  # fmt: skip

# The triangles of codes 0 to 255, three letters each; "-" if there are none. Written by a search over all
# triangulations of the polygons that the edge middles form on the cube's faces;
# tests/metrics/test_marching.py checks that the triangles close on every face.
_WORDS = """
- hkl gjl ghjhjk fik fhihil fikgjl fghfgigij eij eijhkl egigil eghehihik efjfjk ehjefhhjl efgfgkgkl efgfgh
cdh cdkdkl cdhgjl cjkcdjdgj cdhfik cdfdfidil cdhfikgjl cdfdfgfgjfij cdheij cdkdkleij cdhegigil cdkdekdegeik
cdhefjfjk cdfdfjdjlefj cdfdfgefghkl cdfdfgefg bdg bdghkl bdjdjl bjkbdkdhk bdgfik bdgfhihil bdjdjlfik
bdjdfjdfhfij bdgeij bdgeijhkl bdedeidil bdedehehkeik bdgefjfjk bdedehefhgjl bdedekdklefk bdedehefh bcgcgh
bgkbckgkl bcjchjhjl bcjcjk bcgcghfik bcgcfgfgigil bcjcfjfijhkl bcjcfjfij bcgcgheij bekbckeikgjl bcecehehleil
bekbckeik bcecefghjhjk bcecefgjl bcecefhkl bcecef acf acfhkl acfgjl acfghjhjk acicik ailaclchl acicikgjl
acicgicghgij acfeij acfeijhkl acfegigil aceceheghfik acecejcjk acecehehlejl acecelcklegl acecehegh adfdfh
afladlfkl adfdfhgjl adfdfgfgjfjk adidhihik adidil adidgigijhkl adidgigij adfdfheij aeladlejlfik adedegfhihil
adedegfik adedehehkejk aeladlejl adedeghkl adedeg acfbdg acfbdghkl acfbdjdjl abfbfkbjkcdh acicikbdg
ailablbglcdh abibijcdkdkl abibijcdh acfbdgeij abecdhfikgjl abecdfdfidil abecdhfik abecjkcdjdgj abecdhgjl
abecdkdkl abecdh abfbfgfgh abfbfgfglfkl abfbflbjlfhl abfbfkbjk abibhibghhik ailablbgl abibijhkl abibij
abefghfgigij abefikgjl abefhihil abefik abeghjhjk abegjl abehkl abe abe abehkl abegjl abeghjhjk abefik
abefhihil abefikgjl abfbfgfgheij abibij abibijhkl ailablbgl abibhibghhik abfbfkbjk abfbflbjlfhl abfbfgfglfkl
abfbfgfgh abecdh abecdkdkl abecdhgjl acecejcjkbdg abecdhfik acfbdedeidil acfbdgeijhkl acfbdgeij abibijcdh
acicikbdjdjl ailaclchlbdg acicikbdg acfbjkbdkdhk acfbdjdjl acfbdghkl acfbdg adedeg adedeghkl aeladlejl
adedehehkejk adedegfik adfdfhegigil afladlfkleij adfdfheij adidgigij adidhihikgjl adidil adidhihik
adfdfgfgjfjk adfdfhgjl afladlfkl adfdfh acecehegh acecelcklegl acecehehlejl acecejcjk acfeghehihik acfegigil
acfeijhkl acfeij acicgicghgij acicikgjl ailaclchl acicik acfghjhjk acfgjl acfhkl acf bcecef bcecefhkl
bcecefgjl bcgcghefjfjk bekbckeik bcecehehleil bgkbckgkleij bcgcgheij bcjcfjfij bcjchjhjlfik bcgcfgfgigil
bcgcghfik bcjcjk bcjchjhjl bgkbckgkl bcgcgh bdedehefh bdedekdklefk bdgehjefhhjl bdgefjfjk bdedehehkeik
bdedeidil bdgeijhkl bdgeij bdjdfjdfhfij bdjdjlfik bdgfhihil bdgfik bjkbdkdhk bdjdjl bdghkl bdg cdfdfgefg
cdhefgfgkgkl cdfdfjdjlefj cdhefjfjk cdkdekdegeik cdhegigil cdkdkleij cdheij cdfdfgfgjfij cdhfikgjl cdfdfidil
cdhfik cjkcdjdgj cdhgjl cdkdkl cdh efgfgh efgfgkgkl ehjefhhjl efjfjk eghehihik egigil eijhkl eij fghfgigij
fikgjl fhihil fik ghjhjk gjl hkl -
"""
_TRIANGLES = tuple(_WORDS.split())


def triangles(code: int) -> NDArray[np.float64]:
    """Return the triangles of neighbourhood ``code`` as ``(T, 3, 3)`` points ``(z, y, x)`` in [0, 1] steps.

    >>> triangles(0b10000000)
    array([[[0. , 0. , 0.5],
            [0. , 0.5, 0. ],
            [0.5, 0. , 0. ]]])
    """
    letters = _TRIANGLES[code].replace("-", "")
    return np.array([_MIDDLES[c] for c in letters], np.float64).reshape(-1, 3, 3) / 2


@lru_cache(maxsize=64)
def element_areas(spacing: tuple[float, float, float]) -> NDArray[np.float64]:
    """Return the surface area of each of the 256 codes, ``(256,)`` in squared units of ``spacing``.

    >>> float(element_areas((1.0, 2.0, 3.0))[0b11110000])  # a wall across z: one 2 x 3 rectangle
    6.0
    """
    areas = np.zeros(256)
    for code in range(256):
        corners = triangles(code) * spacing
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        areas[code] = np.linalg.norm(normals, axis=1).sum() / 2
    areas.flags.writeable = False
    return areas


@lru_cache(maxsize=64)
def element_lengths(spacing: tuple[float, float]) -> NDArray[np.float64]:
    """Return the contour length of each of the 16 codes, ``(16,)`` in units of ``spacing``.

    >>> element_lengths((3.0, 4.0))[[0b1100, 0b1010, 0b1000, 0b1001]].tolist()
    [4.0, 3.0, 2.5, 5.0]
    """
    height, width = spacing
    lengths = np.full(16, np.hypot(height, width) / 2)  # one corner cut off
    lengths[[0b0000, 0b1111]] = 0
    lengths[[0b1100, 0b0011]] = width
    lengths[[0b1010, 0b0101]] = height
    lengths[[0b1001, 0b0110]] *= 2
    lengths.flags.writeable = False
    return lengths
