from .api import hyperplane_project as hyperplane_project
