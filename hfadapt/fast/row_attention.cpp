// Attention inside rows on AMX tiles.

#include "tiles.h"
