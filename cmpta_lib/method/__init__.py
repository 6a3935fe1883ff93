"""The paper, plain: equations 1-9 as they are written. Read this folder first."""
