using System.Diagnostics;
using System.Net;
using System.Net.Sockets;

namespace Megatron.Compute.Distributed;

/// <summary>
/// A rank's connection to a <see cref="TcpRendezvousServer"/>. A server that does not answer within the request timeout counts as lost;
/// from then on every call fails.
/// </summary>
public sealed class TcpRendezvousStore : IRendezvousStore, IDisposable
{
    private static readonly TimeSpan OneAttempt = TimeSpan.FromSeconds(5);

    private readonly Lock gate = new();
    private readonly string server;
    private readonly TcpClient client;
    private readonly NetworkStream stream;
    private string? lost;

    /// <summary>This machine's address on the way to the server: where ranks of the same network reach it.</summary>
    public IPAddress LocalAddress { get; }

    /// <param name="host">Name or IPv4/IPv6 address.</param>
    /// <param name="connectTimeout">How long to try: the server may start later than its ranks.</param>
    /// <param name="requestTimeout">How long one answer may take before the server counts as lost.</param>
    /// <exception cref="RankFaultException">There is no server.</exception>
    /// <exception cref="OperationCanceledException">The caller gave up.</exception>
    public TcpRendezvousStore(string host, int port, TimeSpan connectTimeout, TimeSpan requestTimeout, CancellationToken cancellation)
    {
        server = $"{host}:{port}";
        client = Connect(host, port, connectTimeout, cancellation);
        client.NoDelay = true;
        client.ReceiveTimeout = client.SendTimeout = (int)(requestTimeout + RendezvousProtocol.MaxServerWait).TotalMilliseconds;
        stream = client.GetStream();
        var address = (client.Client.LocalEndPoint as IPEndPoint)?.Address ?? throw new InvalidOperationException("A connected socket has an address.");
        LocalAddress = address.IsIPv4MappedToIPv6 ? address.MapToIPv4() : address;
    }

    /// <inheritdoc/>
    public void Set(string key, ReadOnlySpan<byte> value)
    {
        RendezvousLimits.CheckKey(key);
        RendezvousLimits.CheckValue(value.Length);
        Call(RendezvousOperation.Set, RendezvousProtocol.Text(key), value.ToArray());
    }

    /// <inheritdoc/>
    public byte[] Get(string key, TimeSpan timeout, CancellationToken cancellation)
    {
        RendezvousLimits.CheckKey(key);
        var started = Stopwatch.GetTimestamp();
        while (true)
        {
            cancellation.ThrowIfCancellationRequested();
            var left = timeout - Stopwatch.GetElapsedTime(started);
            var wait = Math.Clamp((long)left.TotalMilliseconds, 0, (long)RendezvousProtocol.MaxServerWait.TotalMilliseconds);
            var (status, fields) = Call(RendezvousOperation.Get, RendezvousProtocol.Text(key), RendezvousProtocol.Number(wait));
            if (status == RendezvousStatus.Done) return Field(fields, 0);
            if (left <= TimeSpan.Zero) throw InProcessRendezvousStore.RendezvousTimeout(key, timeout);
        }
    }

    /// <inheritdoc/>
    public long Add(string key, long amount)
    {
        RendezvousLimits.CheckKey(key);
        var (_, fields) = Call(RendezvousOperation.Add, RendezvousProtocol.Text(key), RendezvousProtocol.Number(amount));
        return RendezvousProtocol.Number(Field(fields, 0));
    }

    /// <inheritdoc/>
    public bool CompareSet(string key, byte[]? expected, ReadOnlySpan<byte> desired)
    {
        RendezvousLimits.CheckKey(key);
        RendezvousLimits.CheckValue(desired.Length);
        byte[][] fields = expected is null
            ? [RendezvousProtocol.Text(key), desired.ToArray()] : [RendezvousProtocol.Text(key), desired.ToArray(), expected];
        return Call(RendezvousOperation.CompareSet, fields).Status == RendezvousStatus.Done;
    }

    /// <inheritdoc/>
    public IReadOnlyList<string> Keys(string prefix) =>
        [.. Call(RendezvousOperation.Keys, RendezvousProtocol.Text(prefix)).Fields.Select(RendezvousProtocol.Text)];

    /// <inheritdoc/>
    public void Dispose() => client.Dispose();

    private static TcpClient Connect(string host, int port, TimeSpan timeout, CancellationToken cancellation)
    {
        var started = Stopwatch.GetTimestamp();
        while (true)
        {
            cancellation.ThrowIfCancellationRequested();
            var client = new TcpClient(); // tries every address of the name, IPv6 and IPv4
            try
            {
                var attempt = client.BeginConnect(host, port, null, null);
                var left = timeout - Stopwatch.GetElapsedTime(started);
                if (!attempt.AsyncWaitHandle.WaitOne(left > OneAttempt ? OneAttempt : left > TimeSpan.Zero ? left : TimeSpan.Zero))
                    throw new SocketException((int)SocketError.TimedOut);
                client.EndConnect(attempt);
                return client;
            }
            catch (SocketException problem)
            {
                client.Dispose();
                if (Stopwatch.GetElapsedTime(started) >= timeout)
                    throw new RankFaultException(FormattableString.Invariant(
                        $"No rendezvous server answers at {host}:{port} after {timeout.TotalSeconds} s: {problem.Message}."), inner: problem);
                cancellation.WaitHandle.WaitOne(TimeSpan.FromMilliseconds(100));
            }
        }
    }

    private (RendezvousStatus Status, byte[][] Fields) Call(RendezvousOperation operation, params byte[][] request)
    {
        lock (gate)
        {
            if (lost is not null) throw new RankFaultException(lost);
            try
            {
                RendezvousProtocol.WriteFrame(stream, (byte)operation, request);
                var (head, fields) = RendezvousProtocol.ReadFrame(stream) ?? throw new EndOfStreamException("the connection was closed");
                var status = (RendezvousStatus)head;
                if (status == RendezvousStatus.Refused) throw new InvalidOperationException(RendezvousProtocol.Text(Field(fields, 0)));
                return (status, fields);
            }
            catch (Exception problem) when (problem is IOException or InvalidDataException or ObjectDisposedException or SocketException)
            {
                lost = $"The rendezvous server {server} is lost ({problem.Message}).";
                client.Dispose(); // an answer that comes late must not be taken for that of the next request
                throw new RankFaultException(lost, inner: problem);
            }
        }
    }

    private static byte[] Field(byte[][] fields, int index) =>
        index < fields.Length ? fields[index] : throw new RankFaultException("The rendezvous server's reply lacks a field.");
}
