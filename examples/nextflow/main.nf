// SPDX-License-Identifier: LGPL-2.1-only
process sim {
    output:
    path 'result'

    script:
    """
    ${projectDir}/sim > result
    """
}

workflow {
    sim()
}
