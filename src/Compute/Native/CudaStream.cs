using System.Runtime.InteropServices;

namespace Megatron.Compute.Native;

/// <summary>
/// A CUDA stream of our own beside libtorch's current one, and the events that order the two (CUDA runtime API). Calls may come from any
/// thread whose current device is this stream's.
/// </summary>
internal sealed unsafe class CudaStream : IDisposable
{
    private const int NonBlocking = 1, DisableTiming = 2, NotReady = 600;

    private readonly CudaAbi cuda = LibTorch.CudaAbi;
    private nint handle;

    private CudaStream(int device, nint handle) => (Device, this.handle) = (device, handle);

    /// <summary>Index of the device.</summary>
    public int Device { get; }

    /// <summary>cudaStream_t.</summary>
    public nint Handle => handle;

    public CudaStream(int device) : this(device, 0)
    {
        MakeCurrent(device);
        nint created;
        Check(cuda.StreamCreateWithFlags(&created, NonBlocking), "cudaStreamCreateWithFlags");
        handle = created;
    }

    /// <summary>For events of a device without a stream of one's own; nothing to dispose of.</summary>
    public static CudaStream EventsOf(int device) => new(device, 0);

    /// <summary>Makes this stream libtorch's current one of the calling thread, until the result is disposed of.</summary>
    public CurrentStream MakeCurrent()
    {
        nint guard;
        StableAbi.Check(cuda.CreateStreamGuard(handle, Device, &guard), "aoti_torch_create_cuda_stream_guard");
        return new CurrentStream(guard);
    }

    /// <summary>Makes a device the calling thread's current one.</summary>
    public static void MakeCurrent(int device) => Check(LibTorch.CudaAbi.SetDevice(device), "cudaSetDevice");

    /// <summary>Later work of this stream starts after what libtorch's current stream of the calling thread holds now.</summary>
    public void FollowCurrent(nint readyEvent)
    {
        RecordOnCurrent(readyEvent);
        Follow(readyEvent);
    }

    /// <summary>Marks the end of what libtorch's current stream of the calling thread holds now.</summary>
    public void RecordOnCurrent(nint @event)
    {
        MakeCurrent(Device); // libtorch's default stream has no handle of its own: it is that of the thread's device
        Check(cuda.EventRecord(@event, cuda.CurrentStream(Device)), "cudaEventRecord");
    }

    /// <summary>Later work of this stream starts after the event.</summary>
    public void Follow(nint @event) => Check(cuda.StreamWaitEvent(handle, @event, 0), "cudaStreamWaitEvent");

    /// <summary>Marks the end of what this stream holds now.</summary>
    public void Record(nint @event) => Check(cuda.EventRecord(@event, handle), "cudaEventRecord");

    /// <summary>Later work of libtorch's current stream of the calling thread starts after the event; the host does not wait.</summary>
    public void CurrentFollows(nint @event)
    {
        MakeCurrent(Device);
        Check(cuda.StreamWaitEvent(cuda.CurrentStream(Device), @event, 0), "cudaStreamWaitEvent");
    }

    /// <summary>A new event, freed by <see cref="DestroyEvent"/>.</summary>
    public nint CreateEvent() => CreateEvent(DisableTiming);

    /// <summary>Likewise one that keeps the time at which the device passes it.</summary>
    public nint CreateTimedEvent() => CreateEvent(0);

    /// <summary>From one timed event to another; the device has passed both.</summary>
    public TimeSpan Elapsed(nint start, nint end)
    {
        float milliseconds;
        Check(cuda.EventElapsedTime(&milliseconds, start, end), "cudaEventElapsedTime");
        return TimeSpan.FromMilliseconds(milliseconds);
    }

    /// <summary>Frees an event; the device keeps what it still needs of it.</summary>
    public void DestroyEvent(nint @event) => cuda.EventDestroy(@event);

    /// <summary>True when the work before the event is done.</summary>
    /// <exception cref="InvalidOperationException">The device has failed.</exception>
    public bool IsDone(nint @event)
    {
        var status = cuda.EventQuery(@event);
        if (status == NotReady) return false;
        Check(status, "cudaEventQuery");
        return true;
    }

    /// <inheritdoc/>
    public void Dispose()
    {
        if (handle != 0) cuda.StreamDestroy(handle);
        handle = 0;
    }

    private nint CreateEvent(uint flags)
    {
        MakeCurrent(Device);
        nint @event;
        Check(cuda.EventCreateWithFlags(&@event, flags), "cudaEventCreateWithFlags");
        return @event;
    }

    private static void Check(int status, string function)
    {
        if (status != 0) throw new InvalidOperationException($"{function} failed: {Marshal.PtrToStringUTF8((nint)LibTorch.CudaAbi.GetErrorString(status))} ({status}).");
    }

    /// <summary>The time during which a stream is the current one.</summary>
    public readonly struct CurrentStream(nint guard) : IDisposable
    {
        /// <summary>The stream before it is current again.</summary>
        public void Dispose() => StableAbi.Check(LibTorch.CudaAbi.DeleteStreamGuard(guard), "aoti_torch_delete_cuda_stream_guard");
    }
}
