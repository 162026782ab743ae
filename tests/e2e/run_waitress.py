"""waitress with the shop, as the documentation serves it: the number of the file of a socket is the one argument."""

import socket
import sys

from docs.examples.serve_waitress import serve
from tests.e2e.server_shop import create_app, edda

if __name__ == "__main__":
    serve(create_app(), edda, sockets=[socket.socket(fileno=int(sys.argv[1]))], threads=4)
