! SPDX-License-Identifier: LGPL-2.1-only
! OpenMP in Fortran: a stencil with parallel loops and a reduction; one line for each step.
program stencil
  use omp_lib
  use iso_fortran_env, only: int64, output_unit
  implicit none
  integer, parameter :: n = 400
  integer :: i, j, k, step
  integer(int64) :: total
  real(8), allocatable :: a(:, :), b(:, :)
  allocate (a(n, n), b(n, n))
  call omp_set_num_threads(4)
  do j = 1, n
    do i = 1, n
      a(i, j) = mod(i * 7 + j * 13, 101)
    end do
  end do
  b = a
  do step = 1, 150
    do k = 1, 5
      !$omp parallel do private(i) schedule(static)
      do j = 2, n - 1
        do i = 2, n - 1
          b(i, j) = 0.25d0 * (a(i - 1, j) + a(i + 1, j) + a(i, j - 1) + a(i, j + 1))
        end do
      end do
      !$omp end parallel do
      !$omp parallel workshare
      a = b
      !$omp end parallel workshare
    end do
    total = 0
    !$omp parallel do private(i) reduction(+:total)
    do j = 1, n
      do i = 1, n
        total = total + int(a(i, j) * 1d9, int64)
      end do
    end do
    !$omp end parallel do
    print '(i0, 1x, i0)', step, total
    flush (output_unit)
  end do
end program
