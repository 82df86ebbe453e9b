using Microsoft.Win32.SafeHandles;

namespace Megatron.Compute.Checkpointing;

/// <summary>Moves the elements of runs between memory and a file region, with few and large system calls.</summary>
internal static unsafe class BlockTransfer
{
    // Reading over a hole this large costs less than a second system call.
    private const long GapBytesMax = 64 << 10;

    /// <summary>Reads bytes of the source region: fills the whole span or throws.</summary>
    public delegate void RegionReader(Span<byte> destination, long offsetBytes);

    /// <summary>
    /// Copies runs from a region (a tensor in a file) into memory. Neighbouring runs share one read of at most 16 MiB.
    /// </summary>
    /// <param name="runs">Source counted from the region's start, destination from <paramref name="destination"/>.</param>
    /// <param name="elementBytes">Bytes of an element on both sides.</param>
    /// <param name="read">Reads the region.</param>
    /// <param name="destination">First byte of the destination.</param>
    /// <returns>Elements copied.</returns>
    public static long Gather(IEnumerable<CopyRun> runs, int elementBytes, RegionReader read, byte* destination)
    {
        var window = new List<CopyRun>();
        var (windowStart, windowEnd, copied) = (0L, 0L, 0L);
        byte[] buffer = [];
        foreach (var run in runs)
        {
            copied += run.Count;
            var (start, end) = (run.Source * elementBytes, (run.Source + run.Count) * elementBytes);
            if (end - start >= TensorBytes.SliceBytes)
            {
                ReadDirect(read, start, destination + run.Destination * elementBytes, end - start);
                continue;
            }
            var joins = window.Count > 0 && start >= windowEnd && start - windowEnd <= GapBytesMax && end - windowStart <= TensorBytes.SliceBytes;
            if (!joins && window.Count > 0) Scatter(window, elementBytes, read, windowStart, windowEnd, ref buffer, destination);
            if (!joins) windowStart = start;
            windowEnd = end;
            window.Add(run);
        }
        if (window.Count > 0) Scatter(window, elementBytes, read, windowStart, windowEnd, ref buffer, destination);
        return copied;
    }

    /// <summary>Writes runs from memory to a file region; each run is one positioned write (two when larger than 16 MiB, and so on).</summary>
    /// <param name="runs">Source counted from <paramref name="source"/>, destination from the region's start.</param>
    /// <param name="elementBytes">Bytes of an element on both sides.</param>
    /// <param name="source">First byte of the memory.</param>
    /// <param name="handle">The file.</param>
    /// <param name="regionStart">First byte of the region in the file.</param>
    public static void Write(IEnumerable<CopyRun> runs, int elementBytes, byte* source, SafeFileHandle handle, long regionStart)
    {
        foreach (var run in runs)
        {
            var size = run.Count * elementBytes;
            for (var done = 0L; done < size; done += TensorBytes.SliceBytes)
            {
                var slice = new ReadOnlySpan<byte>(source + run.Source * elementBytes + done, (int)Math.Min(TensorBytes.SliceBytes, size - done));
                RandomAccess.Write(handle, slice, regionStart + run.Destination * elementBytes + done);
            }
        }
    }

    private static void ReadDirect(RegionReader read, long start, byte* destination, long size)
    {
        for (var done = 0L; done < size; done += TensorBytes.SliceBytes)
            read(new Span<byte>(destination + done, (int)Math.Min(TensorBytes.SliceBytes, size - done)), start + done);
    }

    private static void Scatter(List<CopyRun> window, int elementBytes, RegionReader read, long start, long end, ref byte[] buffer, byte* destination)
    {
        if (window.Count == 1)
        {
            read(new Span<byte>(destination + window[0].Destination * elementBytes, (int)(end - start)), start);
        }
        else
        {
            if (buffer.Length < end - start) buffer = new byte[Math.Min(TensorBytes.SliceBytes, Math.Max(end - start, buffer.Length * 2L))];
            read(buffer.AsSpan(0, (int)(end - start)), start);
            foreach (var run in window)
                buffer.AsSpan((int)(run.Source * elementBytes - start), (int)(run.Count * elementBytes))
                    .CopyTo(new Span<byte>(destination + run.Destination * elementBytes, (int)(run.Count * elementBytes)));
        }
        window.Clear();
    }
}
