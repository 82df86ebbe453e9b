using System.Net;
using System.Net.Sockets;

namespace Megatron.Compute.Distributed;

/// <summary>
/// Serves an <see cref="InProcessRendezvousStore"/> over TCP, one thread per connection: a rank makes one connection and a run has at most
/// a few thousand ranks. There is no authentication; bind it to an address of the training network only.
/// </summary>
public sealed class TcpRendezvousServer : IDisposable
{
    private readonly InProcessRendezvousStore store = new();
    private readonly TcpListener listener;
    private readonly Thread acceptor;
    private readonly Lock gate = new();
    private readonly Dictionary<TcpClient, Thread> connections = [];
    private readonly CancellationTokenSource stopping = new();
    private readonly int maxConnections;

    /// <summary>Where it listens, with the port that was chosen when 0 was asked for.</summary>
    public IPEndPoint EndPoint { get; }

    /// <param name="endPoint">Address and port; port 0 chooses a free one. IPv6's any-address listens on IPv4 as well.</param>
    /// <param name="maxConnections">Connections beyond this number are closed at once.</param>
    /// <exception cref="SocketException">The address is not ours or the port is taken.</exception>
    public TcpRendezvousServer(IPEndPoint endPoint, int maxConnections)
    {
        this.maxConnections = maxConnections;
        listener = new TcpListener(endPoint);
        if (endPoint.Address.Equals(IPAddress.IPv6Any)) listener.Server.DualMode = true;
        listener.Start();
        EndPoint = (IPEndPoint)listener.LocalEndpoint;
        acceptor = new Thread(Accept) { IsBackground = true, Name = "rendezvous accept" };
        acceptor.Start();
    }

    /// <summary>Closes the port and every connection; clients get a <see cref="RankFaultException"/> at their next call.</summary>
    public void Dispose()
    {
        stopping.Cancel();
        listener.Stop();
        acceptor.Join();
        KeyValuePair<TcpClient, Thread>[] open;
        lock (gate) open = [.. connections];
        foreach (var (client, _) in open) client.Dispose();
        foreach (var (_, thread) in open) thread.Join();
        stopping.Dispose();
    }

    private void Accept()
    {
        while (!stopping.IsCancellationRequested)
        {
            TcpClient client;
            try
            {
                client = listener.AcceptTcpClient();
            }
            catch (SocketException)
            {
                continue; // Stop ends the loop; a connection that vanished before it was accepted does not
            }
            catch (Exception closed) when (closed is ObjectDisposedException or InvalidOperationException)
            {
                return; // the listener was stopped
            }
            lock (gate)
            {
                if (connections.Count >= maxConnections || stopping.IsCancellationRequested)
                {
                    client.Dispose();
                    continue;
                }
                var thread = new Thread(() => Serve(client)) { IsBackground = true, Name = "rendezvous client" };
                connections.Add(client, thread);
                thread.Start();
            }
        }
    }

    private void Serve(TcpClient client)
    {
        try
        {
            client.NoDelay = true;
            using var stream = client.GetStream();
            while (RendezvousProtocol.ReadFrame(stream) is { } request) Answer(stream, (RendezvousOperation)request.Head, request.Fields);
        }
        catch (Exception end) when (end is IOException or InvalidDataException or ObjectDisposedException or OperationCanceledException or SocketException)
        {
            // The client is gone or does not speak the protocol: its connection ends, the others go on.
        }
        finally
        {
            lock (gate) connections.Remove(client);
            client.Dispose();
        }
    }

    private void Answer(NetworkStream stream, RendezvousOperation operation, byte[][] fields)
    {
        try
        {
            var (status, results) = Execute(operation, fields);
            RendezvousProtocol.WriteFrame(stream, (byte)status, results);
        }
        catch (Exception refusal) when (refusal is ArgumentException or InvalidOperationException)
        {
            RendezvousProtocol.WriteFrame(stream, (byte)RendezvousStatus.Refused, RendezvousProtocol.Text(refusal.Message));
        }
    }

    private (RendezvousStatus Status, byte[][] Results) Execute(RendezvousOperation operation, byte[][] fields)
    {
        switch (operation, fields.Length)
        {
            case (RendezvousOperation.Set, 2):
                store.Set(RendezvousProtocol.Text(fields[0]), fields[1]);
                return (RendezvousStatus.Done, []);
            case (RendezvousOperation.Get, 2):
                var wait = TimeSpan.FromMilliseconds(Math.Clamp(RendezvousProtocol.Number(fields[1]), 0, RendezvousProtocol.MaxServerWait.TotalMilliseconds));
                var value = store.TryGet(RendezvousProtocol.Text(fields[0]), wait, stopping.Token);
                return value is null ? (RendezvousStatus.No, []) : (RendezvousStatus.Done, [value]);
            case (RendezvousOperation.Add, 2):
                var sum = store.Add(RendezvousProtocol.Text(fields[0]), RendezvousProtocol.Number(fields[1]));
                return (RendezvousStatus.Done, [RendezvousProtocol.Number(sum)]);
            case (RendezvousOperation.CompareSet, 2): // no third field: the key must be absent
                return (store.CompareSet(RendezvousProtocol.Text(fields[0]), null, fields[1]) ? RendezvousStatus.Done : RendezvousStatus.No, []);
            case (RendezvousOperation.CompareSet, 3):
                return (store.CompareSet(RendezvousProtocol.Text(fields[0]), fields[2], fields[1]) ? RendezvousStatus.Done : RendezvousStatus.No, []);
            case (RendezvousOperation.Keys, 1):
                return (RendezvousStatus.Done, [.. store.Keys(RendezvousProtocol.Text(fields[0])).Select(RendezvousProtocol.Text)]);
            default:
                throw new InvalidDataException($"Operation {(byte)operation} with {fields.Length} fields is unknown.");
        }
    }
}
