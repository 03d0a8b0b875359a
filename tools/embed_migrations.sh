#!/usr/bin/env bash
# Prints a C table of migrations/NNNN_name.sql for the binary: embed_migrations.sh FILE...
set -eu
echo '#include "cli/migrations.h"'
for f in "$@"; do
    v=$(basename "$f" .sql)
    echo "__asm__(\".section .rodata\\n.global migration_${v}\\nmigration_${v}: .incbin \\\"$f\\\"\\n.byte 0\\n.previous\");"
    echo "extern const char migration_${v}[];"
done
echo 'const migration migrations[] = {'
for f in "$@"; do
    v=$(basename "$f" .sql)
    echo "    {$((10#${v%%_*})), \"$v\", migration_${v}},"
done
echo '};'
echo "const int n_migrations = $#;"
