"""waitress with the shop, on a socket that listens already: the number of its file is the one argument."""

import socket
import sys

import waitress

from tests.e2e.server_shop import create_app

if __name__ == "__main__":
    waitress.serve(create_app(), sockets=[socket.socket(fileno=int(sys.argv[1]))], threads=4)
