# SPDX-License-Identifier: LGPL-2.1-only
# A long computation that waits, before its last part, until the file "gate" is there.
open my $out, '>', 'result'; $out->autoflush(1);
my ($seed, @kept) = (12345);
for my $step (1 .. 4000) {
  if ($step == 3000) { select undef, undef, undef, 0.01 until -e 'gate' }
  for (1 .. 12000) { $seed = ($seed * 1103515245 + 12345) % 2147483648 }
  push @kept, "$step:$seed"; shift @kept if @kept > 500;
  print $out "$kept[0] $seed\n";
}
