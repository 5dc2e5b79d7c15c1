"""python -m model.study; see `model.study.run`."""

from model.study.run import main

if __name__ == "__main__":
    main()
